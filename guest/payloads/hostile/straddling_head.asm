; Stores across the beginning of the head. Over exits the offset is wrong; over polling the index is wrong.
%include "driver.inc"
    begin
    mov dword [rdi + 0x0E], 0xFFFF0000
    finish
