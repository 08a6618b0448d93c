"""Ask a server how it is: python health.py URL [COMPONENT]; status 1 unless it answers, and says that COMPONENT is healthy."""

import json
import sys
import urllib.request

url, *components = sys.argv[1:]
# A proxy that the environment names is not for this.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(url, timeout=8) as answer:
    said = answer.read()
sys.exit(any(json.loads(said)[each]["status"] != "healthy" for each in components))
