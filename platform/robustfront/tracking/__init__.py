"""Where a sweep is shown: MLflow, the pictures of its front, and its report."""
