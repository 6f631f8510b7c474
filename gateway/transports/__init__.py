"""How bytes reach a client. A transport frames, parks and writes; it never decides."""
