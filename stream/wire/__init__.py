"""What travels between edge and worker, and the edge's end of it."""
