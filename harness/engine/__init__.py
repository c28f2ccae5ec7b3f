"""Plan, store, executor: what turns stages into artifacts. Knows no method, dataset or metric."""
