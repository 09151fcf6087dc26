// Checks leaf 1 of CPUID: the number of the vCPU, which is also in RDI, and the bit that says that there is a hypervisor. Writes
// the vendor of the processor to port 0x42.
#include "kev.inc"
    mov eax, 1
    cpuid
    bt ecx, 31
    jnc wrong
    shr ebx, 24
    expect ebx, edi

    xor eax, eax
    cpuid
    mov [vendor], ebx
    mov [vendor + 4], edx
    mov [vendor + 8], ecx
    mov esi, offset vendor
    mov ecx, 12
1:  lodsb
    out 0x42, al
    dec ecx
    jnz 1b
    finish
wrong:
    hlt
vendor:
    .zero 12
