"""What a user calls, one verb a file."""
