"""Programs that attack: (name, program, how it ends, why it must come to nothing). `PRELUDE` gives them what they need.

A program that got what it wanted prints BREACH, or leaves a trace that the test looks for from outside: a file, a connection, a signal.
"""

from __future__ import annotations

import platform
from typing import NamedTuple

PRELUDE = r"""
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def refused(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        print('BREACH', number, result, ctypes.get_errno())
def every(*attempts):
    for attempt in attempts:
        try:
            attempt()
        except (OSError, ValueError):
            continue
        print('BREACH', attempt.__code__.co_firstlineno)
"""
"""The test adds FOLDER, PRECIOUS and SECRET (files), PORT, PORT6, UDP, UNIX, ABSTRACT (listening), VICTIM and PARENT (processes)."""


class Hostile(NamedTuple):
    name: str
    program: str
    status: str
    why: str


FILES = [
    Hostile("write-outside", "open(FOLDER + '/planted', 'w').write('x')", "error", "no file is opened for writing"),
    Hostile("append-outside", "open(PRECIOUS, 'a').write('x')", "error", "no file is opened for writing"),
    Hostile("write-descriptor", "os.write(os.open(PRECIOUS, os.O_RDWR), b'x')", "error", "no file is opened for writing"),
    Hostile("truncate", "every(lambda: os.truncate(PRECIOUS, 0), lambda: os.open(PRECIOUS, os.O_TRUNC))", "ok",
            "O_TRUNC counts as writing"),
    Hostile("delete", "os.unlink(PRECIOUS)", "error", "no system call that changes a folder"),
    Hostile("rename", "every(lambda: os.rename(PRECIOUS, FOLDER + '/b'), lambda: os.replace('.', 'x'))", "ok", "nor one that renames"),
    Hostile("folder", "every(lambda: os.mkdir(FOLDER + '/d'), lambda: os.makedirs('d'), lambda: os.rmdir(FOLDER))", "ok", "nor folders"),
    Hostile("symbolic-link", "every(lambda: os.symlink(PRECIOUS, FOLDER + '/l'), lambda: os.symlink(PRECIOUS, 'l'))\n"
            "open('l', 'w').write('x')", "error", "links are made by nobody"),
    Hostile("hard-link", "every(lambda: os.link(SECRET, FOLDER + '/l'), lambda: os.link(SECRET, 'l'))\nopen('l').read()", "error",
            "links are made by nobody"),
    Hostile("mode", "every(lambda: os.chmod(SECRET, 0o777), lambda: os.chmod('.', 0o777), lambda: os.fchmod(1, 0o4755))", "ok",
            "Landlock does not cover chmod, the filter does"),
    Hostile("owner", "every(lambda: os.chown(PRECIOUS, 1, 1), lambda: os.setxattr(PRECIOUS, 'user.x', b'x'))", "ok", "nor chown"),
    Hostile("times", "every(lambda: os.utime(PRECIOUS, (0, 0)))", "ok", "nor utime"),
    Hostile("read-secret", "print(open(SECRET).read())", "error", "the file is not in its view of the system"),
    Hostile("read-by-descriptor", "print(os.read(os.open(os.path.dirname(SECRET) + '/../secret', os.O_RDONLY), 99))", "error",
            "a path with .. leads nowhere else"),
    Hostile("open-path-only", "print(os.read(os.open('/proc/self/fd/%d' % os.open(SECRET, os.O_PATH), 0), 99))", "error",
            "a descriptor without rights is not opened again"),
    Hostile("list-folders", "every(lambda: os.listdir(FOLDER), lambda: os.listdir('/home'), lambda: os.listdir(os.path.expanduser('~')))",
            "ok", "there is no home and no folder of the user"),
    Hostile("system-files", "every(lambda: open('/etc/passwd'), lambda: open('/etc/shadow'), lambda: open('/etc/hostname'))", "ok",
            "of /etc the loader's cache alone"),
    Hostile("poison-library", "print('BREACH', open(os.__file__, 'a'))", "error", "libraries are read-only"),
    Hostile("poison-bytecode", "import json\nprint('BREACH', open(json.__cached__, 'r+b'))", "error", "so is their bytecode"),
    Hostile("shared-memory", "from multiprocessing import shared_memory\nshared_memory.SharedMemory('evil', True, 99)", "error",
            "/dev/shm is out of reach"),
    Hostile("fill-disk", "for n in range(99): open(f'/tmp/{n}', 'wb').write(bytes(2**20))", "error", "nothing is writable"),
    Hostile("unnamed-file", "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)", "error", "an unnamed file is a file"),
    Hostile("sparse-file", "every(lambda: os.truncate(1, 2**40), lambda: os.ftruncate(1, 2**40), lambda: os.posix_fallocate(1, 0, 2**40))",
            "ok", "its output cannot be made larger but by writing"),
    Hostile("write-far-away", "os.lseek(1, 2**40, 0); os.write(1, b'x')", "output", "the kernel limits the size of a file"),
    Hostile("device", "every(lambda: os.mknod(FOLDER + '/d', 0o60666, os.makedev(254, 0)), lambda: os.mkfifo('f'))", "ok", "no devices"),
    Hostile("folder-by-descriptor", "folder = os.open(FOLDER, os.O_PATH)\nprint('BREACH', os.open('precious', os.O_RDONLY, dir_fd=folder))",
            "error", "a folder that can be named is not entered"),
    Hostile("working-folder", "os.chdir(FOLDER)\nprint('BREACH', open('precious'))", "error", "nor by being in it"),
    Hostile("roundabout", "every(*(lambda path=path: open(path) for path in ('/proc/self/root/etc/passwd', f'/proc/{os.getppid()}/fd/0', "
            "'/proc/thread-self/environ', '/dev/mem', '/sys/kernel/notes', f'/proc/self/cwd/../../..{SECRET}')))", "ok", "no way round"),
    Hostile("memory-of-self", "open('/proc/self/mem', 'r+b')", "error", "there is no /proc"),
]  # fmt: skip
PROCESSES = [
    Hostile("environment-of-first", "print(open('/proc/1/environ').read())\nprint('BREACH')", "error", "there is no /proc"),
    Hostile("environment-of-parent", "print(open(f'/proc/{os.getppid()}/environ').read())\nprint('BREACH')", "error", "there is no /proc"),
    Hostile("environment-of-victim", "print(open(f'/proc/{VICTIM}/environ').read())", "error", "there is no /proc"),
    Hostile("list-processes", "print('BREACH', [name for name in os.listdir('/proc') if name.isdigit()])", "error", "there is no /proc"),
    Hostile("kill-worker", "os.kill(os.getppid(), signal.SIGKILL)", "error", "signals go to oneself alone"),
    Hostile("stop-worker", "os.kill(os.getppid(), signal.SIGSTOP)", "error", "signals go to oneself alone"),
    Hostile("kill-victim", "os.kill(VICTIM, signal.SIGKILL)", "error", "signals go to oneself alone"),
    Hostile("stop-victim", "os.kill(VICTIM, signal.SIGSTOP)", "error", "signals go to oneself alone"),
    Hostile("kill-everybody", "every(*(lambda n=n: os.kill(n, 0) for n in (-1, 0, -os.getpgid(os.getppid()))))", "ok",
            "groups and -1 are others"),
    Hostile("signal-otherwise", "every(lambda: os.pidfd_open(VICTIM), lambda: signal.pidfd_send_signal(1, 9))", "ok",
            "nor by the newer ways"),
    Hostile("signal-by-descriptor", "fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())", "error", "a descriptor signals nobody"),
    Hostile("lock-library", "fcntl.flock(open(os.__file__), fcntl.LOCK_EX)", "error", "locks are seen by others"),
    Hostile("limit-worker", "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))", "error", "limits of others cannot be set"),
    Hostile("lift-limits", "every(*(lambda n=n: resource.setrlimit(n, (-1, -1)) for n in (resource.RLIMIT_AS, resource.RLIMIT_CPU)))", "ok",
            "nor one's own"),
    Hostile("priority", "every(lambda: os.nice(-5), lambda: os.setpriority(0, os.getppid(), 19), "
            "lambda: os.sched_setaffinity(os.getppid(), {0}), lambda: os.sched_setscheduler(0, 1, os.sched_param(1)))", "ok",
            "the scheduler takes no orders"),
    Hostile("fork-bomb", "while True: os.fork()", "error", "there are no new processes"),
    Hostile("fork-quietly", "import contextlib\nwhile True:\n  with contextlib.suppress(OSError): os.fork()", "timeout", "not by trying"),
    Hostile("daemon", "if not os.fork() and not os.fork():\n  os.setsid(); time.sleep(1); open(FOLDER + '/planted', 'w')", "error",
            "no process outlives its program"),
    Hostile("zombies", "for n in range(10**5): os.fork() or os._exit(0)", "error", "no processes, no zombies"),
    Hostile("leave-group", "every(os.setsid, lambda: os.setpgid(0, os.getppid()))", "ok", "it stays in the group that is killed"),
    Hostile("threads", "for n in range(3): threading.Thread(target=time.sleep, args=(0.1,)).start()\nprint('BREACH')", "error",
            "one thread is enough"),
    Hostile("thread-from-c", "thread = ctypes.c_ulong()\n"
            "if libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(libc.getpid, ctypes.c_void_p), None) == 0: print('BREACH')",
            "ok", "not from C either"),
    Hostile("multiprocessing", "import multiprocessing\nmultiprocessing.Pool(2).map(print, ['BREACH'])", "error", "no pipes, no processes"),
    Hostile("subprocess", "import subprocess\nsubprocess.run(['/bin/sh', '-c', f'touch {FOLDER}/planted; echo BREACH'])", "error",
            "no processes"),
    Hostile("shell", "if os.system(f'touch {FOLDER}/planted') == 0: print('BREACH')", "ok", "no processes"),
    Hostile("libc-shell", "if libc.system(f'touch {FOLDER}/planted'.encode()) == 0: print('BREACH')", "ok", "not from C either"),
    Hostile("execute", "os.execv('/bin/sh', ['sh', '-c', f'touch {FOLDER}/planted'])", "error", "nothing is executed"),
    Hostile("setuid", "os.execv('/usr/bin/su', ['su', '-c', 'id'])", "error", "nothing is executed, least of all that"),
    Hostile("become-root", "every(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]))", "ok", "users do not change"),
    Hostile("memory-file", "file = os.memfd_create('x')\nprint('BREACH', flush=True)\nos.execve(file, ['x'], {})", "error",
            "neither made nor executed"),
    Hostile("trace-worker", "if libc.ptrace(16, os.getppid(), 0, 0) == 0: print('BREACH')", "ok", "no tracing"),
    Hostile("trace-self", "if libc.ptrace(0, 0, 0, 0) == 0: print('BREACH')", "ok", "no tracing"),
    Hostile("read-worker", "buffer = ctypes.create_string_buffer(64)\nvector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 64)\n"
            "if libc.process_vm_readv(os.getppid(), vector, 1, vector, 1, 0) != -1: print('BREACH')", "ok", "memory of others is closed"),
    Hostile("write-worker", "buffer = ctypes.create_string_buffer(64)\nvector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 64)\n"
            "if libc.process_vm_writev(os.getppid(), vector, 1, vector, 1, 0) != -1: print('BREACH')", "ok", "memory of others is closed"),
    Hostile("terminal", "every(lambda: fcntl.ioctl(0, 0x5412, b'x'), lambda: fcntl.ioctl(2, 0x541C, b'x'), lambda: os.open('/dev/tty', 0))",
            "ok", "no terminal, and none would take TIOCSTI"),
    Hostile("pseudo-terminal", "import pty\nprint('BREACH', pty.openpty())", "error", "no terminals are made"),
    Hostile("namespaces", "for flag in (0x10000000, 0x40000000, 0x20000000, 0x20000):\n"
            "  if libc.unshare(flag) == 0: print('BREACH', flag)", "ok", "no namespaces of its own"),
    Hostile("mount", "if libc.mount(b'none', FOLDER.encode(), b'tmpfs', 0, None) == 0 or libc.umount2(FOLDER.encode(), 2) == 0:\n"
            "  print('BREACH')", "ok", "no mounts"),
    Hostile("root-folder", "every(lambda: os.chroot('/tmp'))", "ok", "no other root"),
]  # fmt: skip
NETWORK = [
    Hostile("ipv4", "socket.create_connection(('127.0.0.1', PORT), 2).send(b'x')", "error", "no sockets"),
    Hostile("ipv6", "socket.socket(socket.AF_INET6).connect(('::1', PORT6))", "error", "no sockets"),
    Hostile("udp", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP))", "error", "no sockets"),
    Hostile("unix", "socket.socket(socket.AF_UNIX).connect(UNIX)", "error", "no sockets"),
    Hostile("unix-abstract", "socket.socket(socket.AF_UNIX).connect('\\0' + ABSTRACT)", "error", "no sockets, named or not"),
    Hostile("netlink", "print('BREACH', socket.socket(16, socket.SOCK_RAW, 0))", "error", "no sockets"),
    Hostile("packets", "every(lambda: socket.socket(17, socket.SOCK_RAW, 768), lambda: socket.socket(2, 3, 1))\n"
            "every(lambda: socket.socket(40, 1))",
            "ok", "no raw sockets, no virtual machine's"),
    Hostile("listen", "socket.create_server(('127.0.0.1', 0))", "error", "no sockets"),
    Hostile("descriptors-beyond", "every(*(lambda n=n: os.fstat(n) for n in range(4, 1024)), lambda: os.dup2(1, 100))", "ok",
            "it has standard input, output, error and its report"),
    Hostile("pair", "print('BREACH', socket.socketpair())", "error", "not even to itself"),
    Hostile("resolve", "import urllib.request\nurllib.request.urlopen(f'http://127.0.0.1:{PORT}/')", "error", "no sockets"),
    Hostile("descriptors-of-worker", "import contextlib\nfor n in range(64):\n  with contextlib.suppress(OSError):\n"
            "    socket.socket(fileno=os.dup(n)).send(b'x'); print('BREACH')", "ok", "the worker's socket is closed in a program"),
]  # fmt: skip
EXHAUSTION = [
    Hostile("loop", "while True: pass", "timeout", "CPU time is limited"),
    Hostile("sleep", "time.sleep(1000)", "timeout", "the clock too"),
    Hostile("memory-at-once", "bytearray(2**40)", "memory", "memory is limited"),
    Hostile("memory-by-and-by", "held = []\nwhile True: held.append(bytearray(2**26))", "memory timeout", "memory is limited"),
    Hostile("memory-mapped", "held = [mmap.mmap(-1, 2**30) for _ in range(64)]\nprint('BREACH')", "error", "mapped memory counts"),
    Hostile("device-without-end", "open('/dev/zero', 'rb').read()", "memory timeout", "so does what is read"),
    Hostile("endless-output", "while True: print('x' * 1000)", "output", "output is limited"),
    Hostile("output-by-and-by", "while True:\n  print('x', flush=True)\n  time.sleep(0.01)", "timeout", "who prints is not spared"),
    Hostile("output-of-nothing", "os.write(1, bytes(2**19)); os.write(1, b'\\xed\\xa0\\x80' * 2**17)", "output", "no text, still output"),
    Hostile("endless-errors", "while True: print('x' * 1000, file=sys.stderr)", "timeout", "nobody reads them"),
    Hostile("endless-output-unstopped", "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nwhile True:\n  try: print('x' * 1000)\n"
            "  except OSError: pass", "timeout", "what is over the limit is not written"),
    Hostile("large-numbers", "n = 3\nwhile True: n **= 9", "timeout", "CPU time is limited, inside one operation too"),
    Hostile("regular-expression", "import re\nre.match('(a+)+$', 'a' * 64 + 'b')", "timeout", "inside the matcher too"),
    Hostile("loop-in-c", "import itertools\n0 in itertools.repeat(1)", "timeout", "where no signal handler of Python's runs"),
    Hostile("symbolic-mathematics", "import sympy\nsympy.sympify(f\"__import__('os').system('touch {FOLDER}/planted')\")\n"
            "x = sympy.symbols('x')\nsympy.expand((x + 1)**10**6)", "timeout memory", "sympy evaluates what it is given"),
    Hostile("deep-recursion", "def f(): f()\nsys.setrecursionlimit(10**9)\nf()", "memory killed timeout error", "it ends itself alone"),
    Hostile("deep-recursion-in-c", "sys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)", "killed timeout",
            "as above"),
    Hostile("large-traceback", "raise ValueError('x' * 10**7)", "error", "an error is one short line"),
    Hostile("slow-traceback", "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E", "timeout", "its time counts"),
    Hostile("many-descriptors", "held = [os.dup(1) for _ in range(10**5)]\nprint('BREACH')", "error", "descriptors are limited"),
    Hostile("deep-source", "eval('(' * 10**5 + ')' * 10**5)", "error memory", "the parser has its own limit"),
]  # fmt: skip
STUBBORN = [
    Hostile("stop-self", "os.kill(os.getpid(), signal.SIGSTOP)", "timeout", "who stops is killed"),
    Hostile("ignore-signals", "for n in (signal.SIGTERM, signal.SIGALRM, signal.SIGXCPU, signal.SIGHUP): signal.signal(n, signal.SIG_IGN)\n"
            "while True: pass", "timeout", "SIGKILL cannot be ignored"),
    Hostile("block-signals", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nsignal.pause()", "timeout", "nor blocked"),
    Hostile("catch-everything", "while True:\n  try: time.sleep(100)\n  except BaseException: pass", "timeout", "nor caught"),
    Hostile("faults-without-end", "signal.signal(signal.SIGSEGV, lambda *_: None)\nctypes.string_at(0)", "timeout", "its time counts"),
    Hostile("output-object", "class Stuck:\n  def flush(self):\n    while True: pass\nsys.stdout = Stuck()", "timeout", "its time counts"),
    Hostile("exit-handlers", "import atexit\natexit.register(lambda: time.sleep(1000))", "ok", "there is no such end"),
    Hostile("destructor", "class D:\n  def __del__(self): time.sleep(1000)\nkept = D()", "ok", "nothing is taken down, it is gone"),
    Hostile("trace-function", "sys.setprofile(lambda *_: time.sleep(1000))", "timeout", "its time counts"),
    Hostile("abort", "os.abort()", "killed", "it ends itself alone"),
    Hostile("segmentation-fault", "ctypes.string_at(0)", "killed", "it ends itself alone"),
    Hostile("stack-smash", "ctypes.memset(id(sys), 255, 4096); print(sys)", "killed error", "it ends itself alone"),
    Hostile("exit-quietly", "os._exit(0)", "ok", "it printed nothing"),
    Hostile("exit-loudly", "os._exit(3)", "error", "its exit code says so"),
    Hostile("ask", "input()", "error", "nobody answers"),
    Hostile("debugger", "breakpoint()", "error", "nobody answers"),
]  # fmt: skip
DECEIT = [
    Hostile("forge-answer", "for n in range(64):\n  try: os.write(n, b'{\"code\": 0, \"timed_out\": false, \"cpu_s\": 0, \"wall_s\": 0}')\n"
            "  except OSError: pass\nos.kill(os.getpid(), 9)", "killed", "how it ended the kernel says"),
    Hostile("forge-report", "os.write(3, b'0 \\n' * 99)\nwhile True: pass", "timeout", "a report is not believed against the kernel"),
    Hostile("garble-report", "os.write(3, b'9' * 9999 + b' \\xff\\n' + bytes(99) + b'[' * 10**5)", "ok", "no report, no harm"),
    Hostile("forge-long-error", "os.write(3, b'0 ' + b'x' * 10**6 + b'\\n')", "error", "an error is short, forged or not"),
    Hostile("fill-report", "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nwhile os.write(3, bytes(2**18)): pass", "error",
            "it harms its report alone"),
    Hostile("error-without-words", "raise type('', (Exception,), {'__module__': 'builtins'})", "error", "silence is no success"),
    Hostile("seal-output", "every(*(lambda n=n: fcntl.fcntl(n, 1033, 15) for n in (1, 3)))", "ok",
            "its files stay readable to who made them"),
    Hostile("patch-integers", "ctypes.memset(id(20) + 24, 7, 4)", "ok", "the next program has another process, and other integers"),
    Hostile("close-output", "os.close(1); os.close(3)", "error", "it harms its report alone"),
    Hostile("close-all", "os.closerange(0, 64)", "error", "it harms its report alone"),
    Hostile("swap-output", "os.dup2(2, 1); print('lost')", "ok", "it harms its own output alone"),
    Hostile("patch-builtins", "import builtins\nbuiltins.print = builtins.sum = lambda *_: 41\nbuiltins.evil = 1\nsys.modules['evil'] = 1\n"
            "os.environ['EVIL'] = '1'\nsys.stdout = None", "ok", "the next program has another process"),
    Hostile("patch-libraries", "import json, random, types\njson.dumps = json.loads = random.seed = None\ntypes.ModuleType = None\n"
            "os._exit = os.write = None\nsys.modules.clear()", "error", "the next program has another process"),
    Hostile("patch-worker", "frame = sys._getframe()\nwhile frame.f_back: frame = frame.f_back\nfor name in list(frame.f_globals):\n"
            "  if callable(frame.f_globals[name]): frame.f_globals[name] = lambda *_: {'code': 0}", "ok error", "it patched its own copy"),
    Hostile("look-for-others", "import gc\nframe = sys._getframe()\nseen = ''\nwhile frame := frame.f_back: seen += str(frame.f_locals)\n"
            "seen += str([o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))])\n"
            "if ''.join(['sword', 'fish']) in seen: print('BREACH')", "ok", "the worker never saw the program before"),
    Hostile("bytes-that-are-no-text", r"sys.stdout.buffer.write(b'\xff\xfe\x00\n'); print('\ud800\0')", "ok", "escapes stand for them"),
]  # fmt: skip
BARE_CALLS = {
    "io_uring": (425, 8, 0), "user-faults": (323, 0), "bpf": (321, 0, 0, 0), "performance-events": (298, 0, 0, -1, -1, 0),
    "keys": (248, 0, 0, 0, 0, -2), "key-control": (250, 0, -3), "system-v-memory": (29, 0x1234, 4096, 0o1666),
    "message-queue": (240, 0, 66, 438, 0), "open-by-structure": (437, -100, 0, 0, 0), "clone3": (435, 0, 0), "fork-call": (57,),
    "vfork-call": (58,), "clone": (56, 17, 0, 0, 0, 0), "mount-call": (165, 0, 0, 0, 0, 0), "open-tree": (428, -100, 0, 1),
    "module": (175, 0, 0, 0), "reboot": (169, 0, 0, 0, 0), "sync": (162,), "join-namespace": (308, 0, 0), "watch": (253,),
    "file-handle": (304, 0, 0, 0), "personality": (135, 0x0040000), "other-filter": (317, 1, 0, 0), "queue-signal": (129, 1, 9, 0),
    "thread-signal": (200, 1, 9), "memory-lock": (151, 1), "ports": (173, 0, 8, 1),
    "execute-descriptor": (322, 1, b"", 0, 0, 4096), "secret-memory": (447, 0), "take-descriptor": (438, 3, 0, 0), "limit": (160, 7, 0),
    "open-filesystem": (430, b"tmpfs", 0), "affinity": (203, 0, 8, 0), "advise-other": (440, 3, 0, 0, 0, 0), "spy": (312, 1, 1, 0, 0, 0),
    "x32": (0x40000000 + 41, 2, 1, 0),
}  # fmt: skip
"""System calls by their numbers on x86_64."""
BARE = [Hostile(f"bare-{name}", f"refused{call}", "ok", "it is not in the list of the filter") for name, call in BARE_CALLS.items()]
BARE += [
    Hostile("32-bit-call", "code = mmap.mmap(-1, 4096, prot=7)\n"
            "code.write(b'\\xb8\\x02\\0\\0\\0\\xcd\\x80\\xc3')\n"  # mov eax, 2 (fork); int 0x80; ret
            "print('BREACH', ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())", "killed",
            "the calls of another architecture end the program"),
]  # fmt: skip
HOSTILE = FILES + PROCESSES + NETWORK + EXHAUSTION + STUBBORN + DECEIT + (BARE if platform.machine() == "x86_64" else [])
EFFECTIVE = (
    "write-outside", "append-outside", "truncate", "symbolic-link", "mode", "times", "read-secret", "open-path-only", "list-folders",
    "environment-of-victim", "kill-victim", "stop-victim", "shell", "execute", "threads", "memory-file", "ipv4", "udp", "unix",
    "unix-abstract", "pair",
)  # fmt: skip
"""These do what they mean to do where nothing protects, which shows that the test would see it."""
