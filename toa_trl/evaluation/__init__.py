"""Is the student better? And is one search better than another, at equal compute?"""
