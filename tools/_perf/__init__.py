"""What pyvfio costs beside its peers, measured in one run.

How it is laid out:

    cli.py        what people type; which rows run here and which on the bench
    row.py        what a row of the table is: contenders, who is compared with whom, aims
    rows/         the rows, as data, and the code that sets their contenders up
    measure.py    contenders take turns, many times, on one processor
    peers.py      other projects, from PyPI into a cache of their own
    report.py     the result as JSON, and the table made of it
    plot.py       what grows with vectors and depth, as SVG
"""
