"""Jobs: functions to be run later, kept in the app's own database file."""
