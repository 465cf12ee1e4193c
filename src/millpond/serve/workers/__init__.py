"""Worker processes: where models of the operator run, so that the gateway survives whatever they do.

`worker.Worker` is the gateway's side: it starts a process, sends it batches, and answers when that process dies or
hangs. `entry` is the process's own side and calls a runner (`workers.runners`). Between them: one msgpack message a
batch each way over a socket pair (`wire`), with large tensors in shared memory (`arena`). Nothing is pickled.
"""
