/* The smallest unikernel that has something to say: its command line, and where it runs. */

#include "unikernel.h"

static void print_number(u64 number)
{
    char digits[21], *at = digits + 20;
    *at = 0;
    do {
        *--at = '0' + number % 10;
    } while (number /= 10);
    print(at);
}

static int unikernel(const struct boot_info *boot)
{
    print("unikernel: no kernel, no agent, ");
    print_number(boot->memory_size >> 20);
    print(" MiB of memory, ");
    print_number(boot->kernel_end - 0x100000);
    print(" bytes of code and data\nunikernel: ");
    print(boot->command_line);
    print("\n");
    return 0;
}
