"""What Wardgate costs, beside others and beside what the kernel takes alone. `python -m bench` prints one table.

    measures   the rows of the table: what is set up, what is counted
    servers    the contestants: how each is started, who its processes are, how one publishes to it
    load       the client of thousands of connections, a process of its own (run by `client`)
    http       keep-alive HTTP for publishing and administering, cheap enough not to be the thing that is measured
    machine    processors, processes' CPU and memory from /proc, limits
    table      figures to text, JSON and Markdown

Nothing of the product imports from here, and from the product nothing is imported but the embedded servers that
development runs on (`config.servers`). Figures are compared within one run; no test asserts on any of them.
"""
