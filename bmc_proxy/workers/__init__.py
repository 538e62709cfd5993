"""Several worker processes that share the listening sockets, and the first process, which has what there is once.

Theory of operation. The first process opens the listeners and accepts nothing. It starts the workers, each with these
sockets and with one end of a pipe. Workers read HTTP, ask the agents, and judge who asks by the accounts' file, as one
process would, and by a replica of the sessions. Whatever has to be counted once they ask over the pipe: a password, a
login, the end of a session, a change of the accounts.

What the first process tells a worker arrives in order. Where a session begins or ends, it has each worker confirm that
it knows, and only then answers whoever asked; a worker that does not confirm is killed. So from then on all agree.

Not imported where one process serves.
"""
