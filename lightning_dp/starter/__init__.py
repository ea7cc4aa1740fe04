"""A first project for a user's own table or images: guesses from a look at the files, each said to be one.

What a private fit must not read off private rows stays a question, with a safe answer until it is answered.
"""
