"""What passes work on: programs, the pipeline, the checks between passes. It knows no pass."""
