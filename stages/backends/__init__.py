"""Who trains and answers: one module per backend."""
