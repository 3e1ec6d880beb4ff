"""Defines the tables, one module for each subject. A command imports only the modules of the tables that it uses.

Each change of a table needs a migration. A test compares the tables with the migrations. `executor.database.indexes`
defines the indexes. `base` has the base class of the tables, the clock of this machine and the clock of the database.
"""
