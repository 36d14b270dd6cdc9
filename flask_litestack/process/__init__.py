"""The box: who is alive, who is woken, whose turn it is. Knows no Flask and no SQL."""
