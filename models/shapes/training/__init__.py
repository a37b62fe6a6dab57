"""How the included model is trained, from clips drawn by a program to the folder that the pipeline loads."""
