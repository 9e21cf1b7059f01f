"""Pages about evaluations: pictures as the judge saw them, tables with intervals, and a leaderboard."""
