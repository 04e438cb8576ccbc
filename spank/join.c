/* join.c - a task enters the container that pioletd built for its step.
 *
 * Between setns and the end of this function the task holds every capability in its own user
 * namespace, so nothing of the user's may run here; at the end it holds none, and never gets one back. Who
 * is root in there by remap_root keeps two, which are of use on files of theirs alone: as root of a system they write
 * where a mode says that nobody may, and packages give capabilities to files.
 */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int drop_capabilities(struct failure *f)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	unsigned kept = getuid() == 0 ? 1u << CAP_DAC_OVERRIDE | 1u << CAP_SETFCAP : 0;
	struct __user_cap_data_struct rest[2] = { { kept, kept, 0 }, { 0, 0, 0 } };

	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
		return fail(f, NULL, "cannot clear the ambient capabilities: %s", strerror(errno));
	/* Root's execve would give them all back; a bounding set of nothing prevents that. */
	for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
		if (!((uint64_t)kept >> capability & 1) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
			return fail(f, NULL, "cannot drop capability %d: %s", capability, strerror(errno));
	if (syscall(SYS_capset, &header, rest) < 0)
		return fail(f, NULL, "cannot drop the capabilities: %s", strerror(errno));
	return 0;
}

int join_namespaces(const struct reply *reply, struct failure *f)
{
	const char *workdir = reply->ready->workdir;

	if (reply->user_ns < 0)
		return !workdir[0] || chdir(workdir) == 0 ? 0 :
		       fail(f, NULL, "cannot enter the working directory %s: %s", workdir, strerror(errno));
	if (setns(reply->user_ns, CLONE_NEWUSER) < 0)
		return fail(f, NULL, "the task cannot join the container's user namespace: %s", strerror(errno));
	if (setns(reply->mount_ns, CLONE_NEWNS) < 0)
		return fail(f, NULL, "the task cannot join the container's mount namespace: %s", strerror(errno));
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return fail(f, NULL, "cannot set no_new_privs: %s", strerror(errno));
	if (drop_capabilities(f) < 0)
		return -1;
	/* After the drop: the directory must be one that the user can enter. */
	if (chdir(workdir[0] ? workdir : "/") < 0)
		return fail(f, errno == ENOENT ? "set workdir in the environment file to a directory of the container" :
			    "set workdir to a directory that you may enter",
			    "cannot enter the working directory %s of the container: %s", workdir, strerror(errno));
	return 0;
}
