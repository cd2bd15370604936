"""Serving: start the service in a process of its own, ask it a question over HTTP, and stop it."""

import json
import subprocess
import sys
import time
import urllib.request

import frevl
from drawn_shapes import arguments, draw, questions, write


def main() -> None:
    asked = arguments(__doc__)
    drawn = draw(asked.folder)
    pairs = write(asked.folder / "pairs.jsonl", questions(drawn))
    store, run, ready = asked.folder / "store", asked.folder / "run", asked.folder / "ready.json"
    frevl.extract(store, images=asked.folder / "images", pairs=[pairs], encoder=[asked.encoder])
    frevl.train(store, pairs, run=run, task="classification", model="kernel")
    command = ["serve", "--store", store, "--run", run, "--port", "0", "--no-page", "--json", ready]
    with subprocess.Popen([sys.executable, "-m", "frevl", *map(str, command)], stdout=subprocess.PIPE) as service:
        try:
            while not ready.exists():  # the address is written once the service answers
                if service.poll() is not None:
                    sys.exit("the service did not start")
                time.sleep(0.1)
            address = json.loads(ready.read_text(encoding="utf-8"))["url"]
            body = {"pairs": [{"image": drawn[0][0], "text": f"is it {drawn[0][1]}?"}]}
            request = urllib.request.Request(
                f"{address}/v1/answer", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as response:
                print(json.loads(response.read())["answers"][0])
        finally:
            service.terminate()


if __name__ == "__main__":
    main()
