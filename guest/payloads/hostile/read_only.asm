; Overwrites each read-only field, waits until the device has restored it, and continues.
%include "driver.inc"
%macro overwrite 4              ; width, offset, wrong value, right value
    mov %1 [rdi + %2], %3
%%again:
    cmp %1 [rdi + %2], %4
    jne %%again
%endmacro
    begin
    overwrite dword, 0x00, 0, 0x74726976
    overwrite word, 0x04, 9, 256
    overwrite byte, 0x06, 4, 0
    overwrite dword, 0x14, 77, 0
    overwrite dword, 0x18, 77, 0
    reset
    config
    ready
    push_byte 'x'
    finish
