"""The SQL functions: one module a function exports one `SqlFunction`, `registry` lists and registers them.

    record       what a function is: name, arguments, and how its expression is built
    builder      the bridge to Spark: resolved arguments in, an expression out
    expressions  reading and making Catalyst expressions
    registry     which functions there are, and their registration in a session

All on the driver, during analysis.
"""
