"""What is asked in a process of its own: torch and Ray take seconds to load, and a driver may hang where no thread can
be ended.
"""
