"""A model, its memory and what reads and writes it, as a page for a browser and as a fragment for a notebook."""
