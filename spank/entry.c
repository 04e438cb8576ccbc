/* entry.c - the program that stands in front of a user's command in a container with an entrypoint, and in front of
 * a task prolog in any container (launcher.c). Linked statically: the image may have no libc at all.
 *
 * Where the user is root (remap_root), it also has the kernel answer "done" to what only a root of all ids could do:
 * chown and set*id, without which no package can be installed. No step of real root comes to a container.
 *
 * The plugin can replace argv[0] but not lengthen argv, so it puts this program there and the replaced
 * word into PIOLET_ARGV0. We exec: the entrypoint's words, then that word, then the rest. The words
 * are NUL-terminated in the file next to us.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WORDS_FILE "/run/piolet/entrypoint"
#define BYTES_MAX 65536
#define WORDS_MAX 1024

#ifdef __x86_64__
#define ARCHITECTURE AUDIT_ARCH_X86_64
#else
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

static const unsigned pretended[] = {
#ifdef __x86_64__
	SYS_chown, SYS_lchown,
#endif
	SYS_fchown, SYS_fchownat, SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid,
	SYS_setfsuid, SYS_setfsgid, SYS_setgroups,
};

#define COUNT (sizeof(pretended) / sizeof(*pretended))

/* The kernel answers 0 to these, and does nothing. What comes by another way of calling it, as of 32 bits, it judges. */
static int pretend_root(void)
{
	struct sock_filter code[2 * COUNT + 4] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 2 * COUNT + 1),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	struct sock_fprog program = { .len = 2 * COUNT + 4, .filter = code };

	for (unsigned i = 0; i < COUNT; i++) {
		code[3 + 2 * i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, pretended[i], 0, 1);
		code[4 + 2 * i] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO);
	}
	code[3 + 2 * COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

static int give_up(const char *kind, const char *what, const char *why, const char *hint)
{
	dprintf(STDERR_FILENO, "piolet: error: cannot run %s%s: %s\n%s", kind, what, why, hint);
	return 127;
}

/* slurmstepd slurm_script_launcher PATH WORD...: what slurmstepd does for a script, of which it is told the same way. */
static int launch(char **argv)
{
	closefrom(STDERR_FILENO + 1);
	setpgid(0, 0);
	execv(argv[2], argv + 3);
	return give_up(argv[2], " in the container", strerror(errno), "");
}

int main(int argc, char **argv)
{
	static char bytes[BYTES_MAX];
	static const char kind[] = "the image's entrypoint: ", hint[] = "hint: set entrypoint = false in the environment file\n";
	const char *zero = getenv("PIOLET_ARGV0");
	char **words = calloc((size_t)argc + WORDS_MAX + 1, sizeof(*words));
	int fd = open(WORDS_FILE, O_RDONLY | O_CLOEXEC), count = 0;
	ssize_t length = fd < 0 ? -1 : read(fd, bytes, sizeof(bytes));

	if (getuid() == 0 && pretend_root() < 0)
		return give_up("tasks as root", "", strerror(errno), "hint: set remap_root = false in the environment file\n");
	if (argc > 3 && strcmp(argv[1], "slurm_script_launcher") == 0)
		return launch(argv);
	if (length < 0 || length == BYTES_MAX || (length > 0 && bytes[length - 1]))
		return give_up(kind, WORDS_FILE, length < 0 ? strerror(errno) : "malformed", hint);
	if (!words || !zero)
		return give_up(kind, "PIOLET_ARGV0", words ? "not set" : "out of memory", hint);
	for (char *word = bytes; word < bytes + length && count < WORDS_MAX; word += strlen(word) + 1)
		words[count++] = word;
	words[count++] = strdup(zero);
	unsetenv("PIOLET_ARGV0");
	for (int i = 1; i < argc; i++)
		words[count++] = argv[i];
	execvp(words[0], words);
	return give_up(length ? kind : "", words[0], strerror(errno), length ? hint : "");
}
