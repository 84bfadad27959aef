"""Doctor: what is wrong with how an application uses rtobs, seen while the application runs.

``probe`` looks on inside the application and writes a file; ``advice`` is pure and says what follows; ``run`` starts
the one and reads the other.
"""
