"""The zoo check: does every model of a list go through, and is what comes out what it claims to be?"""
