"""The commands of mmlfer, each in the file of its name; `_NAME.py` is shared by several."""
