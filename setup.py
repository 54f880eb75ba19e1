"The package as settings.ini describes it: version, requirements, extras and commands are read from there."

import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read("settings.ini", encoding="utf-8")
config = parser["DEFAULT"]


def listed(key: str) -> list[str]:
    return shlex.split(config.get(key, ""))


extras = {key.removesuffix("_requirements"): listed(key) for key in config if key.endswith("_requirements")}
readme = Path("README.md")

setup(
    name=config["lib_name"],
    version=config["version"],
    description=config["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=config["author"],
    author_email=config["author_email"],
    url=config["git_url"],
    keywords=config["keywords"].split(),
    license="Apache-2.0",
    classifiers=["Framework :: Jupyter", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    project_urls={"Source": config["git_url"], "Documentation": config["doc_host"] + config["doc_baseurl"]},
    license_files=["LICENSE"],
    python_requires=f">={config['min_python']}",
    install_requires=listed("requirements"),
    extras_require=extras,
    packages=find_packages(include=[config["lib_path"], config["lib_path"] + ".*"]),
    include_package_data=True,
    entry_points={"console_scripts": listed("console_scripts")},
)
