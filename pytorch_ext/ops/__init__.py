"""One module per op family; the module's name is the op's name in every other folder."""
