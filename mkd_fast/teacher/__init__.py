"""Running a teacher and keeping what it said."""
