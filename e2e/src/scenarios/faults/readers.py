# Readers of all kinds, each a process of its own, that check every byte and go on after an error.
#
# Prints a line of JSON a second: {"second": s, "ops": n, "ms": [...]} where ms[i] is the longest that reader i had to wait for an
# operation that ended in that second, or is waiting now; and {"error": text, "wrong": bool} whenever something went wrong.
# Environment: SUMS {path: sha256}, READERS (how many), KINDS (comma-separated: read, mmap, list, open, held).
import hashlib, json, mmap, os, random, sys, time

SUMS = json.loads(os.environ["SUMS"])
PATHS = sorted(SUMS)
KINDS = os.environ["KINDS"].split(",")
# The wait for a large file is the time that it takes.
SMALL = [path for path in PATHS if os.stat(f"/data/{path}").st_size < 1 << 20]
COUNT = int(os.environ["READERS"])
RING = 8
# For each reader: when its operation began (0: none), operations, and the longest wait of each of the last seconds.
WIDTH = 2 + RING
shared = memoryview(mmap.mmap(-1, COUNT * WIDTH * 8)).cast("d")


class Wrong(Exception):
    pass


def expect(path, content):
    if hashlib.sha256(content).hexdigest() != SUMS[path]:
        raise Wrong(f"{path}: {len(content)} bytes that are not its own")


def forget(file):
    # Pages that are there would answer without anybody.
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path, _):
    with open(f"/data/{path}", "rb", buffering=0) as file:
        forget(file)
        expect(path, file.readall())


def mapped(path, _):
    with open(f"/data/{path}", "rb", buffering=0) as file:
        forget(file)
        size = os.fstat(file.fileno()).st_size
        if size:
            with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as pages:
                expect(path, pages)


def listed(path, _):
    folder = os.path.dirname(path)
    found = set(os.listdir(f"/data/{folder}"))
    wanted = {p[len(folder):].lstrip("/").split("/")[0] for p in PATHS if not folder or p.startswith(folder + "/")}
    if found != wanted:
        raise Wrong(f"/{folder}: {sorted(found ^ wanted)[:3]}")


def opened(path, _):
    with open(f"/data/{path}", "rb", buffering=0) as file:
        os.fstat(file.fileno())


def held(_, file):
    path, file = file
    forget(file)
    expect(path, os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0))


OPERATIONS = {"read": read, "mmap": mapped, "list": listed, "open": opened, "held": held}


def reader(number):
    mine = shared[number * WIDTH:(number + 1) * WIDTH]
    choose = random.Random(number)
    operation = OPERATIONS[KINDS[number % len(KINDS)]]
    path = choose.choice(SMALL)
    file = (path, open(f"/data/{path}", "rb", buffering=0))
    second = 0
    while True:
        path = choose.choice(SMALL)
        began = time.time()
        mine[0] = began
        try:
            operation(path, file)
        except (OSError, ValueError, Wrong) as error:
            print(json.dumps({"error": f"{operation.__name__} {path}: {error!r}", "wrong": isinstance(error, Wrong)}), flush=True)
        now = time.time()
        mine[0] = 0
        mine[1] += 1
        if int(now) != second:
            second = int(now)
            mine[2 + second % RING] = 0
        at = 2 + second % RING
        mine[at] = max(mine[at], (now - began) * 1000)
        time.sleep(choose.uniform(0.05, 0.15))


for number in range(COUNT):
    if os.fork() == 0:
        reader(number)
        os._exit(1)
second = int(time.time()) - 1
while True:
    # A second is over for good when the next one is.
    time.sleep(max(0, second + 2.1 - time.time()))
    at, now = 2 + second % RING, time.time()
    waits = []
    for number in range(COUNT):
        mine = shared[number * WIDTH:(number + 1) * WIDTH]
        # Read once: it may be another one, or none, a moment later.
        began = mine[0]
        waiting = (now - began) * 1000 if began else 0
        waits.append(int(max(mine[at], waiting)))
        mine[at] = 0
    print(json.dumps({"second": second, "ops": int(sum(shared[n * WIDTH + 1] for n in range(COUNT))), "ms": waits}), flush=True)
    second += 1
