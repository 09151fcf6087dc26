; Invalid hypercalls: each returns an errno and prints nothing.
%include "kev.inc"
%macro refused 4                ; number, address, length, errno
    mov rdi, %2
    mov rsi, %3
    hypercall %1
    cmp rax, -%4
    must_be_equal
%endmacro
%define ENOSYS 38
%define EFAULT 14
%define EMSGSIZE 90
    begin64
    refused PRINT, 0xD0000000, 1, EFAULT            ; mapped, but not memory
    refused PRINT, 0x100000000, 1, EFAULT           ; not mapped
    refused PRINT, 0x4000000000000000, 1, EFAULT    ; not canonical
    refused PRINT, 0xFFFFF, 0x2002, EFAULT          ; begins in memory, ends outside
    refused PRINT, -1, 2, EFAULT                    ; wraps around 2^64
    refused PRINT, 0x1000, -1, EMSGSIZE
    refused PRINT, 0x1000, 0x10001, EMSGSIZE
    refused 2, 0, 0, ENOSYS
    refused 0xFFFFFFFF, 0, 0, ENOSYS
    finish
.wrong:
    hlt
