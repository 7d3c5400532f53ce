"""Pictures of an experiment, as SVG."""
