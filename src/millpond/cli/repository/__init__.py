"""`millpond repository`: the models of a server's repository, and of a folder before a server has it."""
