"""What the models of a run are called."""

# The models of a run by the names of their folders, and what tables and plots call them.
TEACHER, COPIED, STUDENT, SCRATCH = "teacher", "copied", "student", "scratch"
SHOWN_AS = {
    TEACHER: "teacher",
    COPIED: "copied, untrained",
    STUDENT: "trained student",
    SCRATCH: "from scratch",
}
