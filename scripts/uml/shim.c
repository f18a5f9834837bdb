// Preloaded into linux.uml, for two things that UML 6.1 does not bear.
//
// On processors with large register files (AMX) the kernel refuses
// PTRACE_SETREGSET(NT_X86_XSTATE) with less than all of them, and UML hands over fewer.
// The whole is read, UML's part laid over it, and all written.
//
// Where a process of the guest is stopped and continued from outside (SIGSTOP, SIGCONT),
// UML takes it for broken and ends. It goes on as it was last told to instead.
#define _GNU_SOURCE
#include <elf.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

#define XSTATE_BV 512 /* which components are there: after the legacy region */
#define AMX (3ULL << 17)

static pid_t resumed; /* who runs, and how it was told to */
static enum __ptrace_request how;

static char whole[32768] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...)
{
	va_list args;
	va_start(args, request);
	pid_t pid = va_arg(args, pid_t);
	void *addr = va_arg(args, void *), *data = va_arg(args, void *);
	va_end(args);

	switch (request) {
	case PTRACE_CONT:
	case PTRACE_SYSCALL:
	case PTRACE_SINGLESTEP:
	case PTRACE_SYSEMU:
	case PTRACE_SYSEMU_SINGLESTEP:
		resumed = pid;
		how = request;
	default:
		break;
	}
	if (request == PTRACE_SETREGSET && (long)addr == NT_X86_XSTATE) {
		struct iovec *part = data, all = {whole, sizeof whole};
		if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, addr, &all) < 0)
			return -1;
		memcpy(whole, part->iov_base, part->iov_len < all.iov_len ? part->iov_len : all.iov_len);
		uint64_t present;
		memcpy(&present, whole + XSTATE_BV, sizeof present);
		present &= ~AMX;
		memcpy(whole + XSTATE_BV, &present, sizeof present);
		return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, addr, &all);
	}
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		long value; // the system call writes it, the library's wrapper returns it
		long failed = syscall(SYS_ptrace, request, pid, addr, &value);
		return failed < 0 ? -1 : value;
	}
	return syscall(SYS_ptrace, request, pid, addr, data);
}

pid_t waitpid(pid_t pid, int *status, int options)
{
	for (;;) {
		pid_t done = syscall(SYS_wait4, pid, status, options, 0);
		if (done <= 0 || done != resumed || status == 0 || !WIFSTOPPED(*status) ||
		    (WSTOPSIG(*status) != SIGSTOP && WSTOPSIG(*status) != SIGCONT))
			return done;
		syscall(SYS_ptrace, how, done, 0, 0);
	}
}
