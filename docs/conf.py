"""How Sphinx makes a site of these pages: ``make docs``, with warnings as errors."""

from airflow_ml_provider import __version__

project = "airflow-ml-provider"
author = "its authors"
copyright = ""  # noqa: A001  (Sphinx's name; there is no line about it, the licence is a file)
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
# Headings have the anchors that they have where the pages are read in the repository.
myst_heading_anchors = 4

autodoc_typehints = "none"
autodoc_class_signature = "mixed"
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"{project} {version}"
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
