/* A unikernel that does what its command line says: good calls, bad calls, and none. "COMMAND [NUMBER]". */

#ifdef BLOCK
#define DEVICES BLOCK_DEVICE("storage")
#endif
#ifdef NET
#define DEVICES NET_DEVICE("service")
#endif
#include "unikernel.h"
#include "link_text.h"

static char buffer[4096];
static volatile u64 counter;

static int is(const char *text, const char *word)
{
    while (*word && *text == *word)
        text++, word++;
    return !*word && (*text == ' ' || !*text);
}

static u64 number_in(const char *text)
{
    u64 number = 0;
    while (*text && *text != ' ')
        text++;
    while (*text == ' ')
        text++;
    for (; *text >= '0' && *text <= '9'; text++)
        number = number * 10 + (*text - '0');
    return number;
}

static void print_hex(u64 number)
{
    char digits[17];
    for (int at = 0; at < 16; at++)
        digits[at] = "0123456789abcdef"[number >> (60 - 4 * at) & 15];
    digits[16] = 0;
    print(digits);
}

static u64 walltime(void)
{
    volatile u64 nanoseconds = 0;
    call(WALLTIME, &nanoseconds);
    return nanoseconds;
}

static u64 poll(u64 nanoseconds)
{
    volatile struct { u64 timeout, ready; int count; } argument = { nanoseconds, ~0ul, -1 };
    call(POLL, &argument);
    return argument.ready;
}

static int block(int number, u64 handle, u64 offset, void *data, u64 size)
{
    volatile struct { u64 handle, offset; void *data; u64 size; int result; } argument =
        { handle, offset, data, size, -1 };
    call(number, &argument);
    return argument.result;
}

static int net(int number, u64 handle, void *data, u64 *size)
{
    volatile struct { u64 handle; void *data; u64 size; int result; } argument = { handle, data, *size, -1 };
    call(number, &argument);
    *size = argument.size;
    return argument.result;
}

static int copy_blocks(void)
{
    /* the first block, with its first byte changed, becomes the second */
    int result = block(BLOCK_READ, 1, 0, buffer, 512);
    print(buffer);
    buffer[0]++;
    return result | block(BLOCK_WRITE, 1, 512, buffer, 512);
}

static int echo_frames(const struct device *device)
{
    describe_link(device, buffer);
    buffer[LINK_TEXT] = 0;
    print(buffer);
    for (;;) {
        u64 size = sizeof buffer;
        if (net(NET_READ, 1, buffer, &size) == 0) {
            net(NET_WRITE, 1, buffer, &size);
            if (buffer[0] == 'q')
                return 0;
        } else if (poll(60ul * 1000 * 1000 * 1000) != 2)
            return 1;
    }
}

static int unikernel(const struct boot_info *boot)
{
    const char *line = boot->command_line;
    u64 number = number_in(line);
    if (is(line, "exit"))
        return number;
    if (is(line, "echo")) {
        print(line);
        return 0;
    }
    if (is(line, "boot")) {
        print_hex(boot->memory_size);
        print_hex(boot->kernel_end);
        print_hex(boot->cycles_per_second);
        return boot->manifest->entries;
    }
    if (is(line, "flood"))
        for (counter = 0; counter < number; counter++)
            print("0123456789abcde\n");
    if (is(line, "walltime"))
        print_hex(walltime());
    if (is(line, "poll")) {
        u64 before = walltime();
        u64 ready = poll(number);
        return ready == 0 && walltime() - before >= number ? 0 : 1;
    }
    if (is(line, "spin"))
        for (print("spinning\n");;)
            counter++;
    if (is(line, "exits"))
        for (print("calling\n");;)
            walltime();
    if (is(line, "capacity"))
        return boot->manifest->device[1].attached * boot->manifest->device[1].properties.block.capacity / 512;
    if (is(line, "copy"))
        return copy_blocks();
    if (is(line, "beyond"))
        return block(BLOCK_READ, 1, number, buffer, 512);
    if (is(line, "nobody"))
        return block(BLOCK_READ, number, 0, buffer, 512);
    if (is(line, "overwrite"))
        return block(BLOCK_WRITE, 1, 0, buffer, 512);
    if (is(line, "frames"))
        return echo_frames(&boot->manifest->device[1]);
    /* from here on: what ends it */
    if (is(line, "call"))
        call(number, buffer);
    if (is(line, "pointer"))
        call(PUTS, (void *)number);
    if (is(line, "string")) {
        volatile struct { u64 data, size; } argument = { number, ~0ul };
        call(PUTS, &argument);
    }
    if (is(line, "into"))
        block(BLOCK_READ, 1, 0, (void *)number, 512);
    if (is(line, "port"))
        __asm__ volatile("outb %%al, %%dx" : : "a"(1), "d"((u16)number));
    if (is(line, "input"))
        __asm__ volatile("inl %%dx, %%eax" : : "d"((u16)number) : "eax");
    if (is(line, "halt"))
        __asm__ volatile("hlt");
    if (is(line, "trap"))
        __asm__ volatile("ud2");
    if (is(line, "write"))
        *(volatile char *)number = 1;
    return 0;
}
