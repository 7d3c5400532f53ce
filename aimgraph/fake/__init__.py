"""Running modules and graphs without values: shapes without arithmetic, and nothing left behind."""
