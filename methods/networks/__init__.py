"""Network architectures shared by methods of several families."""
