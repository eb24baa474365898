"""What a person should know before a run: about the data set (`data`) and about the machine (`machine`).

Nothing is imported here, so that `machine` also works where torch can't be imported.
"""
