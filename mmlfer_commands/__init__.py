"""The commands of mmlfer but `train` and `eval`, each in the file of its name."""
