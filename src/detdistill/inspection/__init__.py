"""What a person should know before a run: about the data set (`data`), the machine (`machine`), and a student and its
teacher (`facts`, `probe`, `estimate`, `teacher`).

Nothing is imported here, so that `machine` also works where torch can't be imported.
"""
