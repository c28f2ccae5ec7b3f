"""Records and their projections: tables, tests, figures, HTML report, MLflow."""
