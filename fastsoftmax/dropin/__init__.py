"""Other people's signatures over `fastsoftmax.functional`: change an import line and keep the code.

The conventions of SciPy, torch and the teaching texts contradict each other (default axis, where the class axis lies,
who divides by the number of rows), so each has a module of its own. The modules are adapters: what they compute, the
public functions compute.
"""
