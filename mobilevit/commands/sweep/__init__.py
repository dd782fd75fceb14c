"""`mobilevit sweep`: many trainings over a space of options."""
