"""`make monitoring`: writes the dashboards and the rules anew."""

from monitoring.files import files

if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
