/* SPDX-License-Identifier: MIT
 *
 * Lets Debian 12's linux.uml (6.1) run on processors whose saved state is larger than it knows of (AMX).
 *
 * UML keeps 2696 bytes of a task's XSAVE area and hands just these back: PTRACE_SETREGSET of NT_X86_XSTATE.  The host
 * takes a whole area or none, and answers EFAULT; the guest panics at its first exec.  Preloaded, this puts UML's bytes
 * at the head of a whole area, and marks the components that do not fit into UML's bytes as being in their first state.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

enum { XSTATE_REGSET = 0x202, XSAVE_LEAF = 13, HEADER = 512, AREA_MAX = 65536 };

typedef long ptrace_function(int request, int pid, void *address, void *data);

/* The size of a whole area, for all components that the processor has enabled. */
static size_t area_bytes(void)
{
	unsigned a, b, c, d;

	__cpuid_count(XSAVE_LEAF, 0, a, b, c, d);
	return b;
}

/* A bit for each component that lies within the first `bytes` of an area; x87 and SSE always do. */
static uint64_t components_within(size_t bytes)
{
	uint64_t mask = 3;

	for (unsigned i = 2; i < 63; i++) {
		unsigned size, offset, c, d;

		__cpuid_count(XSAVE_LEAF, i, size, offset, c, d);
		if (size != 0 && (size_t)offset + size <= bytes)
			mask |= UINT64_C(1) << i;
	}
	return mask;
}

/* Declared as the C library does, variable arguments and all; callers pass four. */
long ptrace(enum __ptrace_request request, ...)
{
	/* Asked once: in a virtual machine each cpuid is a call of the hypervisor, and this runs at each switch of tasks. */
	static ptrace_function *next;
	static size_t whole, known;
	static uint64_t components;
	static __thread unsigned char area[AREA_MAX] __attribute__((aligned(64)));
	va_list arguments;

	va_start(arguments, request);
	int pid = va_arg(arguments, int);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	if (next == NULL)
		next = (ptrace_function *)dlsym(RTLD_NEXT, "ptrace");
	if (request != PTRACE_SETREGSET || (uintptr_t)address != XSTATE_REGSET)
		return next(request, pid, address, data);

	const struct iovec *given = data;

	if (known != given->iov_len) {
		known = given->iov_len;
		whole = area_bytes();
		components = components_within(known);
	}
	if (given->iov_len >= whole || given->iov_len < HEADER + 8 || whole > AREA_MAX)
		return next(request, pid, address, data);

	uint64_t present;
	struct iovec padded = { area, whole };

	memset(area, 0, whole);
	memcpy(area, given->iov_base, given->iov_len);
	memcpy(&present, area + HEADER, sizeof(present));
	present &= components;
	memcpy(area + HEADER, &present, sizeof(present));
	return next(request, pid, address, &padded);
}
